"""The command line. Nothing imports it; it knows the engine, the plan, the recipe, artifacts and the registry of kinds."""
