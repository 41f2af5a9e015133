@function
def main(s, pattern):
    s += sgl.gen("a", regex="[0-9]+") + sgl.gen("b", dtype=int) + sgl.gen("c", regex=pattern)
