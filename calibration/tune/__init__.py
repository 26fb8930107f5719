"""`ditedge tune`: the program for a model, a budget and this machine, found by measuring (docs/few-steps.md)."""
