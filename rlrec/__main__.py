from rlrec.cli import main

if __name__ == "__main__":  # workers of a cluster import this module under another name
    main()
