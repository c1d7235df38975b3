package attach
import "os"
const standInEnv = "WEFT_TEST_RUN"
func standIn() int { os.Exit(1); return 0}
