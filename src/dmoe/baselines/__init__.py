"""Simple models beside which a D-MoE must stand: logistic regression, gradient-boosted trees."""
