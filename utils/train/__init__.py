"""Only what training needs: recipe, optimizer, state, progress, plots, report, search."""
