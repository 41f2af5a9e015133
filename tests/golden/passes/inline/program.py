@function
def judge(s, topic):
    s += topic + sgl.gen("score", temperature=0)
    return s["score"]

@function
def main(s, topic):
    s += judge.run(topic).value
