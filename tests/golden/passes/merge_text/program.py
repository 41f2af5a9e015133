@function
def main(s, topic):
    s += sgl.system("Be brief.")
    s += sgl.user("About " + topic)
    s += sgl.assistant(sgl.gen("x"))
