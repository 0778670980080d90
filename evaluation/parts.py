"""Names of the parts of a split, as the column `split` of a predictions table has them."""

HELD_OUT = ("test", "external")  # their participants have trained nothing and chosen nothing
SCORED = ("val", *HELD_OUT)
HELD_OUT_OR_UNSAID = (*HELD_OUT, "")  # a table of other software may leave the column out
