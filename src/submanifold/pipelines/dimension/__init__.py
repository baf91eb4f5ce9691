"""Choice of the dimension: error by dimension and estimates of the intrinsic dimension."""
