"""How good a speech-text model is: likelihoods, answers, sound and text, each with its protocol and an interval."""
