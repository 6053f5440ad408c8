"""From raw value to token to id, once for all: preparing, predicting, exporting, serving."""
