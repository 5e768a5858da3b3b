"""The section ``leaderboard`` of a configuration, and how many seeds the rules ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from graphattn.errors import ConfigError

__all__ = ["LeaderboardOptions", "PublishedEntry", "required_seeds"]


@dataclass
class PublishedEntry:
    """A published result that the row is put beside, in the unit of the run's own metric.

    Args:
        method: Name of the method.
        source: Where the figures were read: leaderboard, paper, table.
        test: Mean over the test split; ``None``: not published.
        test_std: Its standard deviation.
        validation: Mean over the validation split.
        validation_std: Its standard deviation.
        parameters: Number of parameters.
        external_data: Whether it used more than the data set itself (pretraining, say).
    """

    method: str
    source: str
    test: float | None = None
    test_std: float | None = None
    validation: float | None = None
    validation_std: float | None = None
    parameters: int | None = None
    external_data: bool = False


@dataclass
class LeaderboardOptions:
    """What a leaderboard row is about. ``graphattn fit`` checks this section and does nothing with it.

    Args:
        dataset: The leaderboard's name of the data set, ``ogbg-molhiv`` say.
        method: Name of the method.
        external_data: Whether training used more than the data set itself.
        seeds: Seeds that the rules ask for; ``None``: OGB's rule (see :func:`required_seeds`).
        published: Published entries to put the row beside.
    """

    dataset: str
    method: str
    external_data: bool = False
    seeds: int | None = None
    published: list[PublishedEntry] = field(default_factory=list)

    @property
    def needed_seeds(self) -> int:
        """Seeds without which there is no row."""
        return self.seeds or required_seeds(self.dataset) or 1

    @property
    def hidden_test(self) -> bool:
        """Whether nobody has the test labels, as in OGB's large-scale challenge."""
        return _is_challenge(self.dataset)

    def check(self) -> None:
        """Say what is wrong with the section.

        Raises:
            ConfigError: If nothing says how many seeds there must be, ``seeds`` is not positive or undercuts OGB's
                rule, or a published entry lacks its source or its figures.
        """
        rule = required_seeds(self.dataset)
        if rule is None and self.seeds is None:
            raise ConfigError(
                f"configuration: leaderboard.seeds is needed for {self.dataset!r}: how many seeds its published "
                "entries are means of (only the rules of OGB are known)"
            )
        if self.seeds is not None and self.seeds < (rule or 1):
            whose = f"the rules of {self.dataset} ask for {rule}" if rule else "it must be at least 1"
            raise ConfigError(f"configuration: leaderboard.seeds is {self.seeds}, but {whose}")
        for entry in self.published:
            if not entry.source.strip():
                raise ConfigError(f"configuration: leaderboard.published: {entry.method!r} needs its source")
            if entry.test is None and entry.validation is None:
                raise ConfigError(
                    f"configuration: leaderboard.published: {entry.method!r} needs a test or a validation figure"
                )


def required_seeds(dataset: str) -> int | None:
    """Seeds that OGB's rules ask for (ogb.stanford.edu/docs/leader_rules): 10, of papers100M 3.

    Args:
        dataset: A data set's name, with hyphens or underscores.

    Returns:
        The number; 1 for the large-scale challenge (MAG240M, WikiKG90Mv2, PCQM4Mv2), whose rules ask for a report and
        not for repetitions; ``None`` where the data set is not one of OGB's.
    """
    name = dataset.lower().replace("_", "-")
    if name == "ogbn-papers100m":
        return 3
    if re.match(r"ogb[nlg]-", name):
        return 10
    return 1 if _is_challenge(dataset) else None


def _is_challenge(dataset: str) -> bool:
    return re.match(r"(ogb-?lsc-)?(mag240m|wikikg90m|pcqm4m)", dataset.lower().replace("_", "-")) is not None
