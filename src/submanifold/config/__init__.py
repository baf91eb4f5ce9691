"""Configuration: from parameters to one typed experiment, and the keys of its artifacts.

Every Kedro command imports this package, so it does not import torch: import from its modules.
"""
