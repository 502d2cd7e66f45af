from rlrec.cli import main

if __name__ == "__main__":  # workers of a cluster import it under another name
    main()
