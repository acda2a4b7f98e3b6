"""Events and items as training reads them: files, arrays, pieces of histories, and what is held out."""
