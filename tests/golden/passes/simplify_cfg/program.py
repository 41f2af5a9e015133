@function
def main(s, flag):
    if flag:
        if True:
            s += "a"
    else:
        pass
    return 1
