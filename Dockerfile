# The project and what it needs: docs/how-to/deploy.md.
ARG BASE=python:3.11-slim
FROM ${BASE}

# a compiler for the kernels of Glow's couplings, which are compiled on the first run
RUN apt-get update && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 submanifold
WORKDIR /app

# a further index for pip, such as that of torch's smaller wheels without CUDA
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml constraints.txt LICENSE .telemetry ./
# before the code, so that changed code does not reinstall packages
RUN mkdir -p src/submanifold && touch src/submanifold/__init__.py README.md \
    && python -m pip install --no-cache-dir -c constraints.txt -e .

COPY conf conf
COPY src src
RUN mkdir -p data mlartifacts && chown -R 10001 data mlartifacts
USER 10001
VOLUME ["/app/data", "/app/mlartifacts"]
# the image has no git history, which MLflow would look for
ENV GIT_PYTHON_REFRESH=quiet

ENTRYPOINT ["kedro"]
CMD ["run", "--pipeline=hierarchical"]
