"""The doubly nonnegative relaxation: lift, splitting method, safe bound, sign branching."""
