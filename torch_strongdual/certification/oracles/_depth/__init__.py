"""The depth recursion: functionals layer by layer, the search over slopes, deep witnesses."""
