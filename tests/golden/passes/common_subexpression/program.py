@function
def judge(s, topic):
    s += topic + sgl.gen("score", temperature=0)
    return s["score"]

@function
def main(s, a: str):
    s += str(a) + sgl.gen("x")
    s += str(a) + s["x"]
    return [judge.run(str(a)).value, judge.run(str(a)).value]
