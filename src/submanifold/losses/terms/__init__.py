"""Terms of a loss: one module each, registered as fields of :class:`Terms`."""

from submanifold.common.settings import Settings
from submanifold.losses.terms.likelihood import Likelihood
from submanifold.losses.terms.off_manifold import OffManifold
from submanifold.losses.terms.reconstruction import Reconstruction
from submanifold.losses.terms.term import Term
from submanifold.losses.terms.volume import ManifoldLikelihood, NonOrthogonality, OffDiagonal

__all__ = ["Likelihood", "ManifoldLikelihood", "NonOrthogonality", "OffDiagonal", "OffManifold",
           "Reconstruction", "Term", "Terms"]  # fmt: skip


class Terms(Settings):
    """The registry: one field per term, with its default settings."""

    likelihood: Likelihood = Likelihood()
    reconstruction: Reconstruction = Reconstruction()
    off_manifold: OffManifold = OffManifold()
    manifold_likelihood: ManifoldLikelihood = ManifoldLikelihood()
    non_orthogonality: NonOrthogonality = NonOrthogonality()
    off_diagonal: OffDiagonal = OffDiagonal()

    @property
    def terms(self) -> dict[str, Term]:
        """The terms by name."""
        return {name: getattr(self, name) for name in Terms.model_fields}
