"""What a model must beat, from interactions alone; the baselines rank in the model's own evaluator.

`Popularity` and `RecentPopularity` need nothing more. `ItemKNN` and `EASE` need SciPy (`pip install 'twotower[baselines]'`),
`ImplicitALS` and `ImplicitBPR` the library `implicit` (`pip install 'twotower[implicit]'`); both are imported when such a
baseline is made.
"""

from twotower.baselines.base import Baseline
from twotower.baselines.ease import EASE
from twotower.baselines.implicit_models import ImplicitALS, ImplicitBPR
from twotower.baselines.item_knn import ItemKNN
from twotower.baselines.popularity import Popularity, RecentPopularity

__all__ = ["EASE", "Baseline", "ImplicitALS", "ImplicitBPR", "ItemKNN", "Popularity", "RecentPopularity"]
