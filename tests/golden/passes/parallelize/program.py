@function
def judge(s, topic):
    s += topic + sgl.gen("score", temperature=0)
    return s["score"]

@function
def main(s, topics):
    found = []
    for topic in topics:
        found.append(judge.run(topic).value)
    return found
