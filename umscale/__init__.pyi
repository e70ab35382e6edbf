from umscale.api import LawFit as LawFit
from umscale.api import Model as Model
from umscale.api import Results as Results
from umscale.api import UserError as UserError
from umscale.api import cells as cells
from umscale.api import cost as cost
from umscale.api import fit_law as fit_law
from umscale.api import load_model as load_model
from umscale.api import load_results as load_results
from umscale.api import plan as plan
from umscale.api import read_table as read_table
from umscale.api import study as study
from umscale.api import sweep as sweep

__version__: str
