"""The pages of causal evidence: claims, doses, candidates, metric truth, bits and faults, propagation, tasks."""
