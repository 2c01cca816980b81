"""The bounded record of figures for people: what a daemon has done, from seconds to months ago."""
