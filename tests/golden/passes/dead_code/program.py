@function
def main(s, topic):
    unused = f"{topic}!" + "x"
    kept = int(topic)
    s += topic
