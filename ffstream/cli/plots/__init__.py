"""Pictures for `ffstream plot`: each module draws one kind from the records of `/api`. Only these use matplotlib."""
