"""What selectors are given beside the pairs."""

from __future__ import annotations

from typing import NamedTuple

from attribution.results import PairInfluence
from curation import CurationConfig
from learner.model import Parameters


class Reference(NamedTuple):
    """The reference model of stage 2, and what else stages 2 and 3 go by.

    Attributes:
        parameters: of the reference model.
        batch_size: of the batches that it was trained in.
        pair_influence: what stage 2 says of pairs; None where no selector asks for it.
        curation: what stage 3 counts; of no account to a rival.
    """

    parameters: Parameters
    batch_size: int
    pair_influence: PairInfluence | None = None
    curation: CurationConfig = CurationConfig()
