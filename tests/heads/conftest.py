"""The data, host and detector that the ledger's tests share."""

import pytest
from fake_host import FakeHost
from ledger_cases import detector_of, make_data


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def fake():
    return FakeHost()


@pytest.fixture(scope="module", params=["prototype", "lda"])
def fake_detector(request, fake, data):
    return detector_of(fake, data, request.param)
