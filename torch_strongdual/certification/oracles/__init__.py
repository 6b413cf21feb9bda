"""Upper bounds on the dual norm, one family a file."""
