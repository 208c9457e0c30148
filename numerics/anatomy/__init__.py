"""Why a student is as good as it is: which part of its teacher's knowledge it owes what to."""
