"""What a step of the dual solver is made of: candidates, proven points, branches found, why a gap stays open."""
