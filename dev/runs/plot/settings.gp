# Differences to t of all settings, in standard deviations of their seeds, against the share of t's
# all-reduces. Called by dev/runs/plot.sh with data and settings. t is the line at 0.
n = words(settings)
name(i) = system("echo '".word(settings, i)."' | tr _ ' '")
set title "All settings: difference to t against all-reduces" font ',16'
set grid lc rgb '#cccccc' lw 0.7 dt 1
set border 3 lc rgb '#444444'
set tics nomirror
set logscale x 2
set xrange [0.035:1.3]
set xtics ('1/24' 1.0/24, '1/12' 1.0/12, '1/8' 0.125, '1/6' 1.0/6, '1/4' 0.25, '1/2' 0.5, 'all' 1)
set xlabel "all-reduces per forward pass, of t's"
set ylabel 'difference to t ± its error (standard deviations of a loss over seeds)'
set arrow from graph 0, first 0 to graph 1, first 0 nohead lc rgb '#000000' dt 3
set label 't' at graph 0.005, first 0 offset 0, 0.5 tc rgb '#444444' font ',10'
set bmargin 7
set key below maxrows 2 reverse Left samplen 2
set bars 0.6
set linetype 1 lc rgb '#0072B2' pt 5
set linetype 2 lc rgb '#D55E00' pt 7
set linetype 3 lc rgb '#009E73' pt 9
set linetype 4 lc rgb '#E69F00' pt 11
set linetype 5 lc rgb '#CC79A7' pt 13
set linetype 6 lc rgb '#56B4E9' pt 4
set linetype 7 lc rgb '#666666' pt 6
set linetype cycle 7
x(share, i) = share * 1.012 ** (i - (n + 1) / 2.0) # beside each other
plot for [i=1:n] data index i-1 using ($1 < 1 ? x($1, i) : NaN):2 \
        smooth unique with lines lt i lw 1 dt 3 notitle, \
    for [i=1:n] data index i-1 using (x($1, i)):2:3 with yerrorbars lt i lw 1.5 ps 1.1 \
        title name(i), \
    for [i=1:n] data index i-1 using (x($1, i)):2:4 with labels offset 0.7, 0.5 left \
        font ',10' tc lt i notitle
