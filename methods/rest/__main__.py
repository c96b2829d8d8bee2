"""Make a datastore: python -m methods.rest --vocab-size N --out FOLDER FILE..."""

from methods.rest.drafter import main

raise SystemExit(main())
