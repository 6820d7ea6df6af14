"""Versions of files: what is written today says which it is."""

from mpq._support import schema_versions


def test_a_version_does_not_change_by_itself() -> None:
    """Whoever changes a format changes this line too, and says in a reader what becomes of old."""
    found = {name: n for name, n in vars(schema_versions).items() if name.isupper()}

    assert found == {
        "ASSIGNMENT": 3, "COST_TABLE": 1, "DEVICE_PROFILE": 1, "ESTIMATORS": 1, "EVENTS": 1,
        "EVOLVED_PROXY": 1, "FRONTIER": 1, "JOURNAL": 2, "LOSS_BENCHMARK": 1, "MADE": 1,
        "MEASURED_TABLE": 1,
        "NETWORK_PROFILE": 1, "PROBLEM": 2, "RECIPES": 1, "RESULT": 2,
    }  # fmt: skip
