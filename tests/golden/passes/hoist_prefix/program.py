@function
def main(s, topic, width):
    s += "A constant beginning, then "
    forks = s.fork(width)
    forks += "Every branch begins so."
    forks += sgl.gen("x")
    return forks["x"]
