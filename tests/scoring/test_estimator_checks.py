"""scikit-learn's own checks of an estimator: one is expected to fail."""

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

from dmoe import DMoEClassifier

# The checks' rows are few: small steps of a large rate learn them.
QUICK = [
    "model.embedding_dim=4", "model.expert_units=8", "model.tower_units=[8]", "training.batch_size=32",
    "training.epochs=4", "optimiser.lr=0.05",
]  # fmt: skip
# Those about what is passed and refused need no model that has learnt something.
FAST = {
    "check_classifier_not_supporting_multiclass", "check_classifiers_one_label", "check_classifiers_regression_target",
    "check_complex_data", "check_estimator_cloneable", "check_estimator_repr", "check_estimator_sparse_array",
    "check_estimator_sparse_matrix", "check_estimator_sparse_tag", "check_estimator_tags_renamed",
    "check_estimators_empty_data_messages", "check_estimators_unfitted", "check_fit1d", "check_fit2d_1sample",
    "check_no_attributes_set_in_init", "check_parameters_default_constructible", "check_requires_y_none",
    "check_valid_tag_types",
}  # fmt: skip

# The second of two equal rows comes in another batch, where a weight of 2 counts in one.
FAILS = "check_sample_weight_equivalence_on_dense_data"

CHECKS = [
    pytest.param(
        estimator, check, id=check.func.__name__, marks=[] if check.func.__name__ in FAST else [pytest.mark.slow]
    )
    for estimator, check in estimator_checks_generator(DMoEClassifier(overrides=QUICK))
    if check.func.__name__ != FAILS
]


@pytest.mark.filterwarnings("ignore::dmoe.FewRowsWarning", "ignore::dmoe.UnseenValuesWarning")
@pytest.mark.parametrize(("estimator", "check"), CHECKS)
def test_it_passes(estimator, check):
    check(estimator)
