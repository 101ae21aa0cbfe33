"""`python -m first_llama`."""

import sys

from first_llama.cli import main

sys.exit(main())
