@function
def main(s):
    s += sgl.gen("a", max_tokens=7)
    s += sgl.select("b", choices=["yes", "no"])
    s += sgl.gen("c", dtype=bool)
