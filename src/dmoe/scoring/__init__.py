"""Raw rows in, click probabilities out: runs, baselines, exported models, the estimator."""
