"""Problems whose answer is known: enumerable language models and their closed-form optima. Imports no method."""
