"""Training restricted to given branches, a convex problem: cone programs, first-order steps, and the choice between them."""
