"""What a trained model is used for: one's own pictures scored, encoded, rebuilt and drawn."""

from submanifold.inference.pictures import Pictures
from submanifold.inference.scoring import score_pictures, scores_table

__all__ = ["Pictures", "score_pictures", "scores_table"]
