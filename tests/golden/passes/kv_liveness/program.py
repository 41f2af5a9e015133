def tool(x):
    return x

@function
def main(s):
    s += "Look it up: " + sgl.gen("query")
    forks = s.fork(2)
    forks += sgl.gen("x")
    s += tool(forks["x"])
    s += sgl.gen("answer")
