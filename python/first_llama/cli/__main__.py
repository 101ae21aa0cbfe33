"""`python -m first_llama.cli`."""

import sys

from first_llama.cli import main

sys.exit(main())
