"""What a campaign's conclusions stand on: effects, claims with p and interval, doses, interactions, retest."""
