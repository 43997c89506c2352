"""The kept runs of the long searches say what the README and the catalogue say of them."""

import tarfile

import pytest

from normact.launch import run_folder
from normact.launch.config import space_of
from normact.launch.standings import standings_of
from normact.search.history import History
from normact.spaces import CATALOGUE
from tests.benchmarks.studies import RESULTS


@pytest.fixture
def kept(tmp_path):
    with tarfile.open(RESULTS / "winners_evonorm_b.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "evonorm_b"


def test_the_find_of_the_catalogue_is_the_one_that_was_shown_to_be_better(kept):
    config = run_folder.read_config(kept)
    space = space_of(config)
    with run_folder.open_ledger(kept) as ledger:
        found = space.from_json(History(ledger).record(344).candidate)
        results = {(r.conditions.data, r.conditions.first_seed): r for r in standings_of(ledger, config)}
    assert space.key(found) == space.key(CATALOGUE["normact_b0"].graph)
    assert set(results) == {("digits", 0), ("Fashion-MNIST", 0), ("Fashion-MNIST", 8)}
    rows = {key: {row.entrant.name: row for row in result.rows} for key, result in results.items()}
    assert [rows[key]["#344"].verdict for key in rows] == ["no difference shown", "better", "better"]
    again = rows["Fashion-MNIST", 8]
    assert again["bn_prelu"].verdict == "best baseline"
    assert again["#344"].difference == pytest.approx(0.0091, abs=5e-5)
    assert (again["#344"].low, again["#344"].high) == pytest.approx((0.0028, 0.0154), abs=5e-5)
