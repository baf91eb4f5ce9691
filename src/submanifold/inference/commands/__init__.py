"""Commands that apply a trained model to images or tables, one in each module."""
