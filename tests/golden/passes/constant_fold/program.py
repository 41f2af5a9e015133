@function
def main(s):
    n = 2 + 3 * 4
    if n > 10:
        s += f"n is {n}, " + "twice" * 2
    else:
        s += "small"
