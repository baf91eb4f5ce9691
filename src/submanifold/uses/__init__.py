"""What a trained model is used for: one's own pictures scored, encoded, rebuilt and drawn."""

from submanifold.uses.pictures import Pictures
from submanifold.uses.scoring import score_pictures, scores_table

__all__ = ["Pictures", "score_pictures", "scores_table"]
