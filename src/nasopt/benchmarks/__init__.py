"""Problems whose answer is known: synthetic ones with closed-form fronts, and tables of trained networks."""
