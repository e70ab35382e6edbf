"""What docs/ say that a command prints is what it prints."""

import pytest

from tests.listings import listings, printed


@pytest.mark.parametrize(
    "listing", [found for found in listings() if not found.slow], ids=lambda f: f.command
)
def test_a_listing_is_what_the_command_prints(listing):
    assert printed(listing.command) == listing.text, "python tests/listings.py writes it anew"


def test_listings_are_found():
    assert len(listings()) >= 7
