"""The stories of `WordProblems`: who has what, and what happens to it."""

from collections.abc import Callable

from lit_sft.toy.stories.counting import (
    tell_ages,
    tell_average,
    tell_boxes,
    tell_changes,
    tell_comparison,
    tell_garden,
    tell_inverse,
    tell_percent,
    tell_sharing,
)
from lit_sft.toy.stories.measures import (
    tell_duration,
    tell_machine,
    tell_reading,
    tell_sale,
    tell_saving,
    tell_shopping,
    tell_travel,
    tell_wages,
)
from lit_sft.toy.stories.story import Story

STORIES: tuple[Callable[[Story], None], ...] = (
    tell_changes,
    tell_comparison,
    tell_inverse,
    tell_shopping,
    tell_wages,
    tell_reading,
    tell_travel,
    tell_sharing,
    tell_sale,
    tell_boxes,
    tell_percent,
    tell_duration,
    tell_ages,
    tell_saving,
    tell_garden,
    tell_average,
    tell_machine,
)
